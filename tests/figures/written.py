"""The words of a figure, for tests."""


def written(figure):
    """Returns all that is written in a figure: titles, labels, legends, ticks and texts."""
    parts = [*figure.texts, *(text for legend in figure.legends for text in legend.get_texts())]
    for axes in figure.axes:
        parts += [*axes.texts, *axes.get_xticklabels(), *axes.get_yticklabels(), axes.xaxis.label, axes.yaxis.label]
        legend = axes.get_legend()
        parts += [legend.get_title(), *legend.get_texts()] if legend else []
    return " | ".join([text.get_text() for text in parts] + [axes.get_title(loc="left") for axes in figure.axes])

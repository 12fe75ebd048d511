// The search runs in a worker, which browsers refuse to pages that were opened from disk. There, a hidden frame does it.
if (location.protocol === "file:") {
  window.Worker = class {
    constructor(url) {
      const frame = document.createElement("iframe");
      frame.hidden = true;
      this.inside = new Promise((ready) => {
        frame.onload = () => {
          const inside = frame.contentWindow;
          const script = inside.document.createElement("script");
          frame.onload = null;
          inside.postMessage = (data) => this.deliver(this, data);
          script.src = url;
          script.onload = () => ready(inside);
          inside.document.body.append(script);
        };
      });
      document.body.append(frame);
      this.frame = frame;
    }

    async postMessage(data) {
      this.deliver(await this.inside, data);
    }

    // Each side gets a copy, later: neither may change what the other holds or is at work on.
    deliver(receiver, data) {
      const copy = structuredClone(data);
      setTimeout(() => receiver.onmessage?.({ data: copy }));
    }

    terminate() {
      this.frame.remove();
    }
  };
}

"""timm without torchvision's models and torch's compiler."""

import subprocess
import sys

LIGHT = """
import sys
import torch
import sae.vit
assert "torch._dynamo" not in sys.modules, "the compiler was imported"
assert "torchvision" not in sys.modules and "torchvision.models" not in sys.modules, "a stand-in is left"
model = sae.vit.load("vit_tiny_patch16_224", "random", 32)
with torch.inference_mode():
    model(torch.zeros(1, 3, 32, 32))
    sae.vit.read(model, torch.zeros(1, 3, 32, 32), 3)
assert "torch._dynamo" not in sys.modules, "a forward pass imported the compiler"
"""
WHOLE = """
import timm.data
import timm.models
names = timm.models.get_graph_node_names(timm.create_model("vit_tiny_patch16_224", img_size=32))[1]
assert any(name.startswith("blocks.3") for name in names), "timm cannot trace a model"
try:
    timm.data.create_dataset("torch/cifar10", root="/nonexistent")
except RuntimeError as error:
    assert "not found" in str(error), error  # torchvision's own words
assert isinstance(torch.compiler.disable(print), type(lambda: 0))
import torchvision
from torchvision.transforms.functional import InterpolationMode
assert InterpolationMode is timm.data.transforms.InterpolationMode
assert torchvision.transforms.functional.InterpolationMode is InterpolationMode
assert torchvision.utils.make_grid and torchvision.ops.misc.FrozenBatchNorm2d
boxes, scores = torch.tensor([[0.0, 0, 2, 2], [0, 0, 2, 2]]), torch.tensor([0.5, 0.9])
assert torchvision.ops.nms(boxes, scores, 0.5).tolist() == [1]
assert torchvision.models.resnet18().eval()(torch.zeros(1, 3, 32, 32)).shape == (1, 1000)
"""
SAME = """
import sys
import torch
{first}
from sae import vit
sizes = {{"vit_tiny_patch16_224": 32, "deit_tiny_distilled_patch16_224": 32, "eva02_tiny_patch14_224": 28}}
for name, side in (sizes | {{"vit_tiny_concepts": None}}).items():
    model = vit.load(name, "random", side)
    x = torch.linspace(-1, 1, 3 * vit.geometry(model).side[0] ** 2).reshape(1, 3, *vit.geometry(model).side)
    print(name, float(model(x).double().sum()))
"""


def run(code):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_timm_and_a_forward_pass_do_not_import_the_compiler_and_torchvision_is_whole_afterwards():
    run(LIGHT + WHOLE)


def test_models_are_the_same_as_with_timm_imported_plainly():
    assert run(SAME.format(first="")) == run(SAME.format(first="import timm"))


def test_where_timm_needs_more_of_torchvision_it_is_imported_plainly():
    # As with another version of timm: its layers want an operator that the stand-in has not.
    run("""
import sys
import torch
from importlib.abc import MetaPathFinder
class Needs(MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == "timm.layers":
            from torchvision.ops import nms
            self.found = nms
sys.meta_path.insert(0, Needs())
from sae import vit
assert "torchvision.models" in sys.modules
assert vit.geometry(vit.load("vit_tiny_patch16_224", "random", 32)).blocks == 12
""")

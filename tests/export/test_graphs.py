"""Every method as one graph: the same numbers as the method, for any number of images, with constant text folded."""

from __future__ import annotations

import copy
import re
from dataclasses import replace
from functools import partial
from importlib.util import find_spec

import numpy as np
import pytest

from zsad.backends.onnx import OnnxBackend
from zsad.errors import CheckpointError, ConfigError
from zsad.export.int8 import quantize_dynamic
from zsad.export.onnx_graph import OPSET, write_onnx
from zsad.export.parity import compare, require, require_alike
from zsad.export.writer import unproven_card
from zsad.methods.registry import METHODS
from zsad.nn.clusters import kmeans

pytestmark = pytest.mark.skipif(
    find_spec("onnxruntime") is None or find_spec("onnx") is None,
    reason="needs the extra: pip install 'zsad[onnx]'",
)

NAMES = tuple(METHODS)
OF_THE_IMAGE = {"promptmoe", "wmoeclip", "adaclip", "faprompt"}  # their text depends on what an image shows
NAMED = {"winclip", "moeclip", "aprilgan", "adaclip"}  # their text names the object


@pytest.fixture(scope="module")
def graph_of(loaded_of, tmp_path_factory):
    """A method's loaded form, graph and card, each made once."""
    made, patch = {}, pytest.MonkeyPatch()
    # Fifty rounds of clustering are fifty times the same operators to record.
    patch.setattr("zsad.methods.adaclip.kmeans", partial(kmeans, iterations=4))

    def get(name):
        if name not in made:
            own, path = loaded_of(name), tmp_path_factory.mktemp(name) / "model.onnx"
            object_name = "metal nut" if name in NAMED else None
            recorded = write_onnx(own.backend.method, path, object_name=object_name)
            card = unproven_card(own.backend, own.card, path, recorded, name=name, object_name=object_name)
            made[name] = own, path, card
        return made[name]

    yield get
    patch.undo()


@pytest.mark.parametrize("name", NAMES)
def test_a_graph_gives_what_the_method_gives_for_one_image_and_for_several(graph_of, drawn, name):
    own, path, card = graph_of(name)
    proof = compare(own.backend, OnnxBackend(path, card, threads=1), drawn, object_name=card.object_name)
    require(proof)
    assert proof.images == 5 and proof.score_error < 1e-4 and proof.map_error < 1e-4 and proof.cosine > 0.9999
    assert not own.backend.method.training
    assert card.names_object == (name in NAMED) and card.flops > 1e5
    answer = own.backend.run(drawn.images[0].pixels[None])
    assert card.routing == tuple(answer.routing) and card.terms == tuple(answer.terms)
    assert card.grid == answer.logits.shape[1:]


@pytest.mark.parametrize("name", NAMES)
def test_only_text_that_an_image_changes_is_in_the_graph(graph_of, name):
    import onnx

    model = onnx.load(graph_of(name)[1])
    tensors = [tensor.name for tensor in model.graph.initializer]
    assert any(".visual.blocks." in tensor for tensor in tensors)
    of_text = [tensor for tensor in tensors if re.search(r"clip\.text\.", tensor)]
    assert bool(of_text) == (name in OF_THE_IMAGE), of_text
    assert not any(49408 in tensor.dims for tensor in model.graph.initializer)  # the vocabulary
    assert {node.domain for node in model.graph.node} <= {"", "ai.onnx"}
    assert model.opset_import[0].version == OPSET
    batch = model.graph.input[0].type.tensor_type.shape.dim[0]
    assert batch.dim_param and not batch.dim_value


def test_the_name_of_the_object_is_part_of_the_graph(graph_of, drawn):
    own, path, card = graph_of("moeclip")
    pixels, backend = drawn.images[0].pixels[None], OnnxBackend(path, card, threads=1)
    right = own.backend.run(pixels, ("metal nut",))
    np.testing.assert_allclose(backend.run(pixels, ("metal nut",)).score, right.score, atol=1e-5)
    np.testing.assert_allclose(backend.run(pixels, ("object",)).score, right.score, atol=1e-5)
    with pytest.raises(ConfigError, match=r"exported for 'metal nut', not for 'pill'.*--object 'pill'"):
        backend.run(pixels, ("pill",))


def test_other_methods_do_not_care_what_images_show(graph_of, drawn):
    _, path, card = graph_of("mpa")
    backend, pixels = OnnxBackend(path, card, threads=1), drawn.images[0].pixels[None]
    np.testing.assert_array_equal(backend.run(pixels, ("pill",)).score, backend.run(pixels).score)


def test_a_graph_refuses_pixels_of_another_size(graph_of):
    _, path, card = graph_of("mpa")
    with pytest.raises(ConfigError, match=r"takes pixels of \(3, 40, 40\), got \(3, 32, 32\)"):
        OnnxBackend(path, card, threads=1).run(np.zeros((1, 3, 32, 32), np.float32))


def test_another_models_graph_is_no_proof(graph_of, drawn):
    (own, _, _), (_, path, card) = graph_of("mpa"), graph_of("anomalyclip")
    few = replace(drawn, images=drawn.images[:1])
    with pytest.raises(
        CheckpointError, match=r"does not give what the model gives.*nothing was written"
    ) as caught:
        require(compare(own.backend, OnnxBackend(path, card, threads=1), few))
    assert "\n" not in str(caught.value)


def test_what_is_not_finite_is_no_proof(graph_of, drawn):
    own = graph_of("mpa")[0]

    class Broken:
        spec = own.backend.spec

        def run(self, pixels, words=None):
            answer = copy.copy(own.backend.run(pixels))
            answer.score = answer.score * np.nan
            return answer

    few = replace(drawn, images=drawn.images[:1])
    proof = compare(own.backend, Broken(), few)
    assert proof.score_error == float("inf") and proof.map_error == 0
    with pytest.raises(CheckpointError):
        require(proof)


def test_eight_bits_are_proven_by_cosine_and_metrics(graph_of, drawn, tmp_path):
    import onnx

    own, path, card = graph_of("promptmoe")
    small = tmp_path / "model.int8.onnx"
    quantize_dynamic(path, small)
    assert "MatMulInteger" in {node.op_type for node in onnx.load(small).graph.node}
    backend = OnnxBackend(small, card, threads=1)
    proof = compare(own.backend, backend, drawn, quality=True)
    require_alike(proof)
    assert 0.9 < proof.cosine < 1 and proof.score_error > 0
    assert set(proof.quality) == {"image AUROC", "PRO"}
    assert all(0 <= row[side] <= 1 for row in proof.quality.values() for side in ("model", "graph"))
    with pytest.raises(CheckpointError, match="eight bits are too few"):
        require_alike(proof.model_copy(update={"cosine": 0.5}))


@pytest.mark.parametrize("name", ["promptmoe", "adaclip", "moeclip", "winclip"])
def test_openvino_gives_what_the_method_gives(graph_of, drawn, name):
    pytest.importorskip("openvino", reason="needs the extra: pip install 'zsad[openvino]'")
    from zsad.backends.openvino import OpenVINOBackend

    own, path, card = graph_of(name)
    require(
        compare(
            own.backend,
            OpenVINOBackend(path, card, precision="fp32", threads=1),
            drawn,
            object_name=card.object_name,
        )
    )


def odd_one(loaded_of):
    return loaded_of(
        "anomalyclip", oddness="fused", oddness_in_map=(0.5, 0.5, 0.5), oddness_in_score=(1, 3, 3)
    )


@pytest.mark.parametrize("name", NAMES)
def test_every_method_runs_in_eight_bits(graph_of, drawn, tmp_path, name):
    own, path, card = graph_of(name)
    small = tmp_path / "model.int8.onnx"
    quantize_dynamic(path, small)
    few = replace(drawn, images=drawn.images[:2])
    proof = compare(own.backend, OnnxBackend(small, card, threads=1), few, object_name=card.object_name)
    assert 0.9 < proof.cosine < 1 and proof.score_error < 0.3


def test_oddness_goes_into_graphs_of_eight_bits(loaded_of, drawn, tmp_path, caplog):
    own, path, small = odd_one(loaded_of), tmp_path / "model.onnx", tmp_path / "model.int8.onnx"
    recorded = write_onnx(own.backend.method, path)
    quantize_dynamic(path, small)
    assert not caplog.records
    card = unproven_card(own.backend, own.card, small, recorded, name="odd", int8=True)
    proof = compare(own.backend, OnnxBackend(small, card, threads=1), drawn)
    assert 0.9 < proof.cosine < 1 and 0 < proof.score_error < 0.2


@pytest.mark.parametrize("target", ["onnx", "openvino"])
def test_oddness_within_the_picture_is_part_of_the_graph(loaded_of, drawn, tmp_path, target):
    own = odd_one(loaded_of)
    recorded = write_onnx(own.backend.method, tmp_path / "model.onnx")
    card = unproven_card(own.backend, own.card, tmp_path / "model.onnx", recorded, name="odd")
    if target == "openvino":
        pytest.importorskip("openvino", reason="needs the extra: pip install 'zsad[openvino]'")
        from zsad.backends.openvino import OpenVINOBackend

        backend = OpenVINOBackend(tmp_path / "model.onnx", card, precision="fp32", threads=1)
    else:
        backend = OnnxBackend(tmp_path / "model.onnx", card, threads=1)
    proof = compare(own.backend, backend, drawn)
    require(proof)
    assert proof.score_error < 1e-4 and proof.map_error < 1e-4
    pixels = np.stack([image.pixels for image in drawn.images])
    several, alone = backend.run(pixels), [backend.run(row[None]) for row in pixels]
    np.testing.assert_allclose(several.score, np.concatenate([answer.score for answer in alone]), atol=1e-5)
    assert np.ptp(several.score) > 1e-3

"""What every generator must do, written once: `GeneratorModelContract` for components, `PipelineContract`.

A family's test file subclasses them, names tiny sizes, and adds what is particular to that family. Real
classes, never mocks. The fixtures are in `conftest.py`.
"""

import inspect
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from PIL import Image
from torch import Tensor
from torch.testing import assert_close

from hf_mm.registry import register_generators

TRUST = "custom_pipeline='pipeline', trust_remote_code=True"


class GeneratorModelContract:
    """Inherit and define `model_class`, `options` and `inputs`."""

    model_class: type
    answer = "sample"  # the output that counts; "" when the model returns a tensor
    half_tolerance: float | None = 0.05  # of bfloat16; None where rounding may change what is computed

    def options(self) -> dict[str, Any]:
        """Arguments of a tiny model."""
        raise NotImplementedError

    def inputs(self) -> dict[str, Any]:
        """Arguments of `forward`, two rows of each tensor."""
        raise NotImplementedError

    def loss(self, model: Any) -> Tensor:
        """A number that depends on every parameter."""
        return self.output(model).square().mean()

    def model(self, **changes: Any) -> Any:
        torch.manual_seed(0)
        return self.model_class(**self.options() | changes).eval()

    def output(self, model: Any, **inputs: Any) -> Tensor:
        made = model(**inputs or self.inputs())
        return getattr(made, self.answer) if self.answer else made

    @torch.no_grad()
    def answer_of(self, model: Any, **inputs: Any) -> Tensor:
        return self.output(model, **inputs)

    def test_save_and_load_keeps_every_output_bit(self, tmp_path):
        model = self.model()
        model.save_pretrained(tmp_path)
        again, report = self.model_class.from_pretrained(tmp_path, output_loading_info=True)
        assert not any(report.values()), report
        assert_close(self.answer_of(again), self.answer_of(model), rtol=0, atol=0)
        assert not again.training
        assert not list(tmp_path.glob("*.bin"))

    def test_bfloat16_weights_come_back_bit_for_bit(self, tmp_path):
        model = self.model().to(torch.bfloat16)
        model.save_pretrained(tmp_path)
        again = self.model_class.from_pretrained(tmp_path, torch_dtype=torch.bfloat16)
        assert_close(again.state_dict(), model.state_dict(), rtol=0, atol=0)

    def test_a_pipeline_can_save_its_variants_and_shards(self):
        """diffusers passes on what it finds in the signature, and drops the rest without a word."""
        arguments = inspect.signature(self.model_class.save_pretrained).parameters
        assert {"safe_serialization", "variant", "max_shard_size", "is_main_process"} <= set(arguments)

    def test_auto_model_of_diffusers_opens_it_with_no_flag(self, tmp_path):
        register_generators()
        model = self.model()
        model.save_pretrained(tmp_path)
        again = diffusers.AutoModel.from_pretrained(tmp_path)
        assert type(again) is self.model_class, "GENERATORS of the registry must name it"
        assert_close(self.answer_of(again), self.answer_of(model), rtol=0, atol=0)

    def test_loads_without_this_package(self, stranger, tmp_path):
        model = self.model()
        model.save_pretrained(tmp_path / "model")
        expected = {"inputs": self.inputs(), "output": self.answer_of(model)}
        torch.save(expected, tmp_path / "expected.pt")
        stranger.run(f"""
expected = torch.load({str(tmp_path / "expected.pt")!r})
model = AutoModel.from_pretrained({str(tmp_path / "model")!r}, trust_remote_code=True)
with torch.no_grad():
    output = model(**expected["inputs"])
assert torch.equal(output{f".{self.answer}" if self.answer else ""}, expected["output"])
""")

    def test_every_parameter_gets_a_gradient(self):
        model = self.model().train()
        self.loss(model).backward()
        dead = [name for name, weight in model.named_parameters() if weight.grad is None]
        assert not dead

    def test_each_row_equals_the_same_row_alone(self):
        model, inputs = self.model(), self.inputs()
        rows = [
            {name: value[i : i + 1] if isinstance(value, Tensor) else value for name, value in inputs.items()}
            for i in range(2)
        ]
        assert_close(torch.cat([self.answer_of(model, **row) for row in rows]), self.answer_of(model))

    def test_forward_leaves_its_inputs_as_they_were(self):
        inputs, untouched = self.inputs(), self.inputs()
        self.output(self.model().train(), **inputs).sum().backward()
        assert_close(inputs, untouched, rtol=0, atol=0)

    def test_gradient_checkpointing_changes_no_gradient(self):
        """A model that does not claim it must refuse it."""
        if not self.model_class._supports_gradient_checkpointing:
            with pytest.raises(ValueError, match="does not support gradient checkpointing"):
                self.model().enable_gradient_checkpointing()
            return
        grads = []
        for checkpointing in (False, True):
            model = self.model().train()
            if checkpointing:
                model.enable_gradient_checkpointing()
                assert model.is_gradient_checkpointing
            self.loss(model).backward()
            grads.append([weight.grad for weight in model.parameters()])
        assert_close(grads[0], grads[1])

    def test_compiles_as_one_graph(self):
        torch.compiler.reset()
        model = self.model()
        compiled = torch.compile(model, fullgraph=True, backend="eager")
        assert_close(self.answer_of(compiled), self.answer_of(model))

    def test_bfloat16_stays_near_float32(self):
        model = self.model()
        expected = self.answer_of(model)
        inputs = {
            name: value.bfloat16() if isinstance(value, Tensor) and value.is_floating_point() else value
            for name, value in self.inputs().items()
        }
        output = self.answer_of(model.bfloat16(), **inputs)
        assert output.dtype == torch.bfloat16
        assert output.isfinite().all()
        if self.half_tolerance is not None:
            assert_close(output.float(), expected, rtol=self.half_tolerance, atol=self.half_tolerance)


class PipelineContract:
    """Inherit and define `pipeline_class`, `pipeline`, `call` and `picture`."""

    pipeline_class: type
    count = 2  # pictures that `call` asks for

    def pipeline(self) -> Any:
        """A tiny one; the same each time."""
        raise NotImplementedError

    def call(self) -> dict[str, Any]:
        """Plain arguments of a call that draws `count` pictures by `generator`."""
        raise NotImplementedError

    def picture(self) -> tuple[int, int, int]:
        """(channels, height, width) of a picture."""
        raise NotImplementedError

    def images(self, pipe: Any, seed: int = 0, output_type: str = "pt") -> Any:
        pipe.set_progress_bar_config(disable=True)
        generator = torch.Generator().manual_seed(seed)
        return pipe(**self.call(), generator=generator, output_type=output_type).images

    def saved(self, folder: Any) -> dict[str, Any]:
        """Save a pipeline in `folder`/pipeline, and beside it what it draws."""
        pipe = self.pipeline()
        pipe.save_pretrained(folder / "pipeline")
        expected = {"call": self.call(), "images": self.images(pipe)}
        torch.save(expected, folder / "expected.pt")
        return expected

    def check(self, folder: Any, place: Any, flags: str = "") -> str:
        """Code that loads the pipeline from `place` and compares what it draws, without a warning."""
        return f"""
expected = torch.load({str(folder / "expected.pt")!r})
pipe = DiffusionPipeline.from_pretrained({str(place)!r}, {flags})
assert torch.equal(pictures(pipe, expected["call"]), expected["images"])
assert type(pipe).__name__ == {self.pipeline_class.__name__!r}
assert not warnings, warnings
"""

    def test_save_and_load_keeps_every_pixel(self, tmp_path):
        expected = self.saved(tmp_path)["images"]
        again = self.pipeline_class.from_pretrained(tmp_path / "pipeline")
        assert_close(self.images(again), expected, rtol=0, atol=0)

    def test_diffusers_finds_the_class_with_no_flag(self, tmp_path):
        register_generators()
        expected = self.saved(tmp_path)["images"]
        again = DiffusionPipeline.from_pretrained(tmp_path / "pipeline")
        assert type(again) is self.pipeline_class, "GENERATORS of the registry must name it"
        assert_close(self.images(again), expected, rtol=0, atol=0)

    def test_a_stranger_draws_the_same_pixels(self, stranger, tmp_path):
        self.saved(tmp_path)
        stranger.run(self.check(tmp_path, tmp_path / "pipeline", TRUST))

    def test_from_the_hub_all_draw_the_same_pixels(self, member, stranger, tmp_path):
        self.saved(tmp_path)
        name = self.pipeline_class.__name__.lower()
        member.run(f"{self.check(tmp_path, tmp_path / 'pipeline')}\npipe.push_to_hub({name!r})")
        member.run(self.check(tmp_path, f"me/{name}"))
        stranger.run(self.check(tmp_path, f"me/{name}", TRUST))

    def test_no_component_is_lost_for_having_a_default(self):
        """diffusers loads components whose argument has a default only when they are declared."""
        arguments = inspect.signature(self.pipeline_class.__init__).parameters
        optional = {name for name, argument in arguments.items() if argument.default is not argument.empty}
        components = set(self.pipeline().components)
        assert components & optional <= set(self.pipeline_class._optional_components)

    def test_the_same_seed_draws_the_same_pixels(self):
        pipe = self.pipeline()
        first = self.images(pipe)
        assert_close(self.images(pipe), first, rtol=0, atol=0)
        assert not torch.equal(self.images(pipe, seed=1), first)

    def test_draws_the_types_of_output_that_diffusers_has(self):
        pipe, (channels, height, width) = self.pipeline(), self.picture()
        tensor, array, pil = (self.images(pipe, output_type=name) for name in ("pt", "np", "pil"))
        assert tensor.shape == (self.count, channels, height, width)
        assert 0 <= tensor.min() <= tensor.max() <= 1
        assert_close(torch.from_numpy(array).permute(0, 3, 1, 2), tensor, rtol=0, atol=0)
        assert len(pil) == self.count
        for picture, pixels in zip(pil, array, strict=True):
            assert isinstance(picture, Image.Image)
            assert (picture.mode, picture.size) == ({1: "L", 3: "RGB"}[channels], (width, height))
            assert np.array_equal(np.asarray(picture).reshape(pixels.shape), (pixels * 255).round())

    def test_returns_a_tuple_when_asked(self):
        pipe = self.pipeline()
        pipe.set_progress_bar_config(disable=True)
        options = {"generator": torch.Generator().manual_seed(0), "output_type": "pt", "return_dict": False}
        (images,) = pipe(**self.call(), **options)
        assert_close(images, self.images(pipe), rtol=0, atol=0)

    def test_an_unknown_type_of_output_is_refused(self):
        with pytest.raises(ValueError, match=r"`output_type`.*'jpeg'"):
            self.images(self.pipeline(), output_type="jpeg")

    def test_draws_in_bfloat16(self):
        images = self.images(self.pipeline().to(torch.bfloat16))
        assert images.isfinite().all()

    def test_leaves_no_gradient_and_no_change_in_its_models(self):
        pipe = self.pipeline()
        before = {name: part.training for name, part in self.models(pipe).items()}
        weights = {name: part.state_dict() for name, part in self.models(pipe).items()}
        weights = {name: {key: w.clone() for key, w in part.items()} for name, part in weights.items()}
        assert not self.images(pipe).requires_grad
        for name, part in self.models(pipe).items():
            assert part.training is before[name]
            assert_close(part.state_dict(), weights[name], rtol=0, atol=0)

    def models(self, pipe: Any) -> dict[str, torch.nn.Module]:
        return {name: part for name, part in pipe.components.items() if isinstance(part, torch.nn.Module)}

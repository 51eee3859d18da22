"""What several tests need: shrunk models and random weights."""

import pytest
import torch

import hatlib


def tiny_overrides(arch: str) -> dict:
    """Constructor arguments that shrink a registered arch for tests, as its class declares them."""
    return dict(hatlib.model_info(arch).model_class.tiny_args)


def randomize(model: torch.nn.Module, seed: int = 0, std: float = 0.05) -> torch.nn.Module:
    """Moves all parameters away from their initial values, so that no branch hides behind a zero or a one."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += std * torch.randn(parameter.shape, generator=generator).to(parameter)
    return model


def relative_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    return ((actual - expected).abs().max() / expected.abs().max()).item()


def distinct_archs() -> list[str]:
    """One arch for each network that differs from others when shrunk; of the same at several scales, one of each kind.

    HAT stands for the scales, at which the heads are the same for all families.
    """
    distinct = {}
    for info in map(hatlib.model_info, hatlib.list_models()):
        shrunk = tiny_overrides(info.arch)
        if info.family != "hat":
            shrunk["upscale"] = None
        left = {name: value for name, value in info.model_args.items() if name not in shrunk}
        distinct[info.family, info.task, str(sorted(left.items()))] = info.arch
    return list(distinct.values())


@pytest.fixture(params=distinct_archs())
def arch(request) -> str:
    """Each registered arch that differs from others when shrunk."""
    return request.param


@pytest.fixture
def tiny(arch) -> torch.nn.Module:
    """Each of these, shrunk, with random weights, in eval mode."""
    return randomize(hatlib.create_model(arch, **tiny_overrides(arch))).eval()


@pytest.fixture
def tiny_hat() -> torch.nn.Module:
    """A small x2 HAT with random weights, in eval mode."""
    return randomize(hatlib.create_model("hat_s_x2", **tiny_overrides("hat_s_x2"))).eval()


@pytest.fixture(params=["hat_s_x2", "swinir_m_jpeg_gray_x1", "rcan_x3", "edsr_x2"])
def tiny_of_each_family(request) -> torch.nn.Module:
    """What differs in a traced graph, shrunk as far as it goes, with random weights, in eval mode."""
    less = dict(depths=(2,), num_heads=(2,)) if request.param.startswith("swinir") else {}
    return randomize(hatlib.create_model(request.param, **{**tiny_overrides(request.param), **less})).eval()

import pytest
import torch

from bundle.networks.export import IndexDecoder, IndexEncoder
from bundle.networks.vqgan import build_vqgan

# With chunks of 3 vectors every size has another number of chunks.
SIZES = [(1, 16, 16, 16), (2, 16, 20, 24), (1, 28, 12, 8)]


@pytest.fixture(params=["ema", "fsq"])
def network(request):
    network = build_vqgan("lite", request.param, 64).eval()
    with torch.no_grad():
        if request.param == "ema":
            network.quantizer.lookup_bytes = 3 * 64 * 4
            network.quantizer.initialize(network.encode_latent(torch.rand(1, 1, 32, 32, 32) * 2 - 1))
        else:  # random weights alone give every cell the same code
            network.quantizer.project_in.weight.mul_(1e3)
    return network


DEPRECATED = ("ignore:`torch.jit:FutureWarning", "ignore:`torch.jit:DeprecationWarning")


@pytest.mark.filterwarnings(*DEPRECATED, "ignore::torch.jit.TracerWarning")
@torch.no_grad()
def test_what_was_traced_at_one_size_gives_the_same_at_others(network, tmp_path):
    image, indices = torch.rand(1, 1, 16, 16, 16), torch.randint(0, 64, (1, 4, 4, 4))
    examples = {"forward": image, "encode": image, "decode": indices}
    torch.jit.save(torch.jit.trace_module(network, examples, check_trace=False), tmp_path / "model.ts")
    traced = torch.jit.load(tmp_path / "model.ts")

    for batch, *size in SIZES:
        image = torch.rand(batch, 1, *size) * 2 - 1
        indices = network.encode(image)
        assert len(indices.unique()) > 1
        assert torch.equal(traced.encode(image), indices)
        torch.testing.assert_close(traced.decode(indices), network.decode(indices), rtol=0, atol=1e-5)
        torch.testing.assert_close(traced(image), network(image), rtol=0, atol=1e-5)


@pytest.mark.filterwarnings(*DEPRECATED)
@torch.no_grad()
def test_what_was_scripted_gives_the_same_in_training_mode_too(network, tmp_path):
    modules = {"whole": network.train(), "encoder": IndexEncoder(network), "decoder": IndexDecoder(network)}
    for name, module in modules.items():
        torch.jit.save(torch.jit.script(module), tmp_path / f"{name}.ts")
    network.eval()
    scripted = {name: torch.jit.load(tmp_path / f"{name}.ts") for name in modules}

    for batch, *size in SIZES:
        image = torch.rand(batch, 1, *size) * 2 - 1
        indices = network.encode(image)
        assert len(indices.unique()) > 1
        assert torch.equal(scripted["encoder"](image), indices)
        torch.testing.assert_close(scripted["decoder"](indices), network.decode(indices), rtol=0, atol=1e-5)
        torch.testing.assert_close(scripted["whole"](image), network(image), rtol=0, atol=1e-5)


@pytest.mark.parametrize("module", [lambda network: network, IndexEncoder, IndexDecoder])
def test_a_whole_checkpoint_is_loaded_as_strictly_as_its_model(module):
    other = build_vqgan("lite", "ema", 64)
    state = {name: tensor + 1 for name, tensor in other.state_dict().items()}
    loaded = module(other)

    loaded.load_state_dict({"format_version": 2, "model": state, "network": {"preset": "lite"}})

    assert all(torch.equal(tensor, state[name]) for name, tensor in loaded.state_dict().items())
    with pytest.raises(RuntimeError, match="[Mm]issing key"):
        module(other).load_state_dict({"model": {}})
    with pytest.raises(RuntimeError, match="[Uu]nexpected key"):
        module(other).load_state_dict({"model": state | {"stranger": state["quantizer.embedding"]}})

"""What adapters by request cost: passes of one model with none, one, and several in the batch.

    python benchmarks/batched_adapters.py                 # 32 rows, adapters of rank 16
    python benchmarks/batched_adapters.py --rows 512 --tokens 1

All linear layers but the head are adapted. The same pass, a token of each row, is made in turn with
rows of no adapter, of one, and of all; the adapters are random. Prints the least time of a pass, as
other load on the machine only adds to it, and its ratio to that without adapters.
"""

import argparse
import tempfile
import time
from pathlib import Path

import torch

from hone.adapters import LoraConfig, add_adapter, remove_adapters, save_adapter, set_adapter
from hone.engine.adapters import AdapterBank
from hone.engine.sources import Alone
from hone.models import CausalLM, ModelConfig

SHAPE = ModelConfig(32000, 1024, 2816, 16, 16, 8, tie_word_embeddings=True)


def make_bank(model: CausalLM, count: int, rank: int) -> AdapterBank:
    """A bank of random adapters, "0" and so on."""
    bank = AdapterBank(model)
    with tempfile.TemporaryDirectory() as folder:
        for number in range(count):
            path = Path(folder) / str(number)
            adapter = add_adapter(model, LoraConfig(r=rank), "made", seed=number)
            with torch.no_grad():
                for weight in adapter.weights():
                    weight.add_(torch.randn_like(weight) * 0.01)
            save_adapter(model, path)
            set_adapter(model, None)
            remove_adapters(model)
            bank.load(str(number), path)
    return bank


@torch.inference_mode()
def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=1, help="of each row")
    parser.add_argument("--adapters", type=int, default=4)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--times", type=int, default=30)
    chosen = parser.parse_args()
    model = CausalLM(SHAPE)
    model.initialise(seed=0)
    model.requires_grad_(False).eval().adjoin_weights()
    with torch.inference_mode(False):
        bank = make_bank(model, chosen.adapters, chosen.rank)
    names = [str(number) for number in range(chosen.adapters)]
    kinds: dict[str, list[str | None]] = {
        "no adapter": [None],
        "one adapter": ["0"],
        f"{chosen.adapters} adapters": [*names],
        f"{chosen.adapters} adapters and none": [*names, None],
    }
    lengths = [chosen.tokens] * chosen.rows
    ids_N = torch.randint(SHAPE.vocab_size, (sum(lengths),))
    least = dict.fromkeys(kinds, float("inf"))
    for _ in range(chosen.times):
        for kind, taken in kinds.items():
            start = time.perf_counter()
            bank.use([(taken[row % len(taken)], chosen.tokens) for row in range(chosen.rows)])
            context = Alone(lengths)
            hidden_NE = model.decoder(ids_N, context.positions_N(), context)
            bank.use([])
            model.logits(hidden_NE[-chosen.rows :])
            least[kind] = min(least[kind], time.perf_counter() - start)
    size = sum(weight.numel() for weight in model.parameters()) / 1e6
    print(
        f"{size:.0f}M, {chosen.rows} rows of {chosen.tokens} tokens, rank {chosen.rank}, "
        f"{torch.get_num_threads()} threads"
    )
    for kind, seconds in least.items():
        print(f"{kind:24}{seconds * 1e3:9.1f} ms{seconds / least['no adapter']:8.2f}")


if __name__ == "__main__":
    main()

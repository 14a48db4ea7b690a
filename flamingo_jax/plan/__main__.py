"""Does a run fit? `python -m flamingo_jax.plan --config=configs/of9b.py --topology=a100-40gb:8`.

Compiles the real training step for machines that are not there, and says what each device needs.
"""

import json
from collections.abc import Sequence

from absl import flags

from flamingo_jax import cli
from flamingo_jax.errors import UserError
from flamingo_jax.parallel.mesh import make_mesh, row_shards
from flamingo_jax.plan import report
from flamingo_jax.plan.account import StepCost, measure
from flamingo_jax.plan.search import Search, cheapest_remat, largest_batch
from flamingo_jax.plan.targets import open_target, prepare_backends
from flamingo_jax.train.config import TrainConfig, complete
from flamingo_jax.train.setup import errors_prefixed

TOPOLOGY = flags.DEFINE_string(
    "topology", None, "the machine: a100-40gb:8, a100-80gb:64, h100:8, v5e:2x4, v5p:2x2x1, cpu:8, …"
)
JSON = flags.DEFINE_bool("json", False, "print JSON instead of text")
EFFICIENCY = flags.DEFINE_float(
    "efficiency", 0.4, "share of the chip's peak that the step is taken to reach", lower_bound=0.01
)
SEARCH_BATCH = flags.DEFINE_bool("search-batch", False, "look for the largest batch that fits")
SEARCH_REMAT = flags.DEFINE_bool(
    "search-remat", False, "look for the rematerialisation with the fewest FLOPs that fits"
)


def main(argv: Sequence[str]) -> None:
    config = cli.parse_config(argv, TrainConfig, complete)
    if not TOPOLOGY.value:
        raise UserError("no topology given; say which machine, as in --topology=a100-40gb:8")
    prepare_backends()
    target = open_target(TOPOLOGY.value)
    if target.chip is None and (SEARCH_BATCH.value or SEARCH_REMAT.value):
        raise UserError("the CPU's compiler does not tell what fits; search on another topology")
    known: list[tuple[TrainConfig, StepCost]] = []  # configs are no dict keys

    def measured(candidate: TrainConfig) -> StepCost:
        for config, account in known:
            if config == candidate:
                return account
        known.append((candidate, measure(candidate, target, EFFICIENCY.value)))
        return known[-1][1]

    searches: dict[str, Search] = {}
    if SEARCH_REMAT.value:
        searches["search_remat"] = cheapest_remat(config, measured)
        config = searches["search_remat"].config
    if SEARCH_BATCH.value and target.chip is not None:
        with errors_prefixed("config.mesh"):
            parts = row_shards(make_mesh(config.mesh, target.devices))
        searches["search_batch"] = largest_batch(config, parts, target.chip.capacity, measured)
        config = searches["search_batch"].config
    account = measured(config)
    if JSON.value:
        found = {name: report.search_json(search) for name, search in searches.items()}
        print(json.dumps(account.to_json() | found, indent=2))
    else:
        print("\n\n".join([*map(report.search_text, searches.values()), report.text(account)]))


if __name__ == "__main__":
    cli.run(main)

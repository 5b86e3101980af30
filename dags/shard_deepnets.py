"""### DeepNets-1M → WebDataset shards.

Samples architectures by the DeepNets-1M rules, or takes those of an official HDF5 file. One mapped task writes each part of the
training split, so parts can be made at the same time; the other splits are small and made by one task. The manifests come last,
when all parts are there.

**Starts**: by hand. **Then**: with images (`shard_images`), `meta_train` starts.
"""

from __future__ import annotations

from airflow.sdk import DAG, Param, get_current_context, task

from ghn_airflow import defaults
from ghn_airflow.assets import DEEPNETS
from ghn_airflow.operator import GhnOperator
from ghn_airflow.settings import options, settings_of

with DAG(
    dag_id="shard_deepnets",
    description="Sample and shard architectures, in parts",
    doc_md=__doc__,
    schedule=None,
    catchup=False,
    tags=defaults.TAGS,
    max_active_runs=1,
    default_args=defaults.default_args(hours=24),
    params={
        "deepnets": defaults.deepnets(title="write to"),
        "train_count": Param(
            1_000_000, type="integer", minimum=1, title="training architectures", description="How many"
        ),
        "parts": Param(
            8, type="integer", minimum=1, maximum=1000, title="parts", description="Tasks for the training split"
        ),
        "count": Param(
            500, type="integer", minimum=1, title="others", description="Architectures of each evaluated split"
        ),
        "splits": defaults.splits("Beside train", title="evaluated splits"),
        "from_hdf5": Param(
            None,
            type=["null", "string"],
            pattern=r"^[^-\s]\S*_eval\.hdf5$",
            title="official file",
            description="deepnets1m_eval.hdf5, with the training file beside it: take these instead (empty: sample them)",
        ),
        "seed": Param(
            0, type="integer", minimum=0, title="seed", description="Of the sample; evaluated splits use seed + 1"
        ),
        "shard_samples": Param(1000, type="integer", minimum=1, title="architectures per shard", description="At most"),
        "num_classes": Param(10, type="integer", minimum=2, title="classes", description="Width of the classifiers"),
        "image_size": Param(32, type="integer", minimum=8, maximum=1024, title="image size", description="Pixels"),
        "channels": defaults.numbers(
            "channels", "Draw from these (empty: the published rule)", section="Small networks"
        ),
        "fc_dims": defaults.numbers(
            "hidden widths", "Draw from these (empty: the published rule)", section="Small networks"
        ),
        "max_nodes": defaults.optional_count(
            "nodes", "Pass over larger training graphs (empty: none)", section="Small networks"
        ),
        "backend": defaults.backend(),
    },
) as dag:

    @task(multiple_outputs=True, retries=0)
    def commands() -> dict[str, object]:
        """Make the command lines, one for each part."""
        given = settings_of(get_current_context())
        common = {"out": given["deepnets"], **{n: given[n] for n in ("num_classes", "image_size", "shard_samples")}}
        drawn = {name: given[name] for name in ("channels", "fc_dims")}
        training = {
            "split": "train",
            "count": given["train_count"],
            "seed": given["seed"],
            "max_nodes": given["max_nodes"],
        }
        sampled = [split for split in given["splits"] if split != "predefined"]
        others = {"split": sampled, "count": given["count"], "seed": given["seed"] + 1}
        predefined = options(**common, split="predefined", count=2)  # no file has them
        if given["from_hdf5"]:
            file = str(given["from_hdf5"])
            training = {"split": "train", "from_hdf5": file.replace("_eval.", "_train.")}
            others = {"split": sampled, "from_hdf5": file}
            drawn = {}
        train = ["shard", "deepnets", *options(**common, **training, **drawn)]
        return {
            "parts": [[*train, f"--part={i + 1}/{given['parts']}"] for i in range(given["parts"])],
            "others": ["shard", "deepnets", *options(**common, **others, **drawn)] if sampled else [],
            "predefined": ["shard", "deepnets", *predefined] if "predefined" in given["splits"] else [],
            "verify": ["shard", "verify", given["deepnets"]],
            "announce": {"deepnets": given["deepnets"]},
        }

    @task(retries=0)
    def parts(made: dict[str, list[list[str]]]) -> list[list[str]]:
        """Give the list that is mapped over."""
        return made["parts"]

    made = commands()
    train = GhnOperator.partial(
        task_id="train_part", map_index_template="{{ task.arguments[-1].partition('=')[2] }}"
    ).expand(arguments=parts(made))
    others = GhnOperator(task_id="evaluated_splits", arguments=made["others"])
    predefined = GhnOperator(task_id="predefined", arguments=made["predefined"])
    verify = GhnOperator(
        task_id="verify",
        trigger_rule="none_failed",  # some of the splits may not be asked for
        arguments=made["verify"],
        outlets=[DEEPNETS],
        announce=made["announce"],
    )
    [train, others, predefined] >> verify

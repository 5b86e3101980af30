"""### Images → WebDataset shards.

Splits an image source into train, val and test and writes each as tar shards with a manifest, then compares what is stored with
the manifests. A run that was stopped goes on; running it again changes nothing.

**Starts**: by hand. **Then**: with architectures (`shard_deepnets`), `meta_train` starts.
"""

from __future__ import annotations

from airflow.sdk import DAG, Param, get_current_context, task

from ghn_airflow import defaults
from ghn_airflow.assets import IMAGES
from ghn_airflow.operator import GhnOperator
from ghn_airflow.settings import options, settings_of

with DAG(
    dag_id="shard_images",
    description="Split and shard an image source",
    doc_md=__doc__,
    schedule=None,
    catchup=False,
    tags=defaults.TAGS,
    max_active_runs=1,
    default_args=defaults.default_args(hours=24),
    params={
        "source": Param(
            "digits",
            type="string",
            minLength=1,
            title="source",
            description="`digits`, a folder or zip with class folders, a CIFAR archive, or ImageNet's folder; on the worker's disk",
        ),
        "images": defaults.images(title="write to"),
        "seed": Param(0, type="integer", minimum=0, title="seed", description="Of the splits and the order"),
        "shard_samples": Param(1000, type="integer", minimum=1, title="images per shard", description="At most"),
        "image_size": defaults.optional_count("image size", "Resize to so many pixels (empty: keep the files)"),
        "limit": defaults.optional_count("limit", "Use only so many images in all (empty: all)"),
        "val_fraction": Param(
            0.1,
            type="number",
            minimum=0,
            exclusiveMaximum=1,
            title="validation",
            description="Fraction of the training images",
        ),
        "backend": defaults.backend(),
    },
) as dag:

    @task(multiple_outputs=True, retries=0)
    def commands() -> dict[str, object]:
        """Make the command lines."""
        given = settings_of(get_current_context())
        names = ("source", "seed", "shard_samples", "image_size", "limit", "val_fraction")
        return {
            "shard": ["shard", "images", *options(out=given["images"], **{name: given[name] for name in names})],
            "verify": ["shard", "verify", given["images"]],
            "announce": {"images": given["images"]},
        }

    made = commands()
    shard = GhnOperator(task_id="shard", arguments=made["shard"])
    verify = GhnOperator(
        task_id="verify",
        arguments=made["verify"],
        outlets=[IMAGES],
        announce=made["announce"],
    )
    shard >> verify

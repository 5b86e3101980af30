"""### Promotion.

The candidate becomes **champion** if it is better on `val` beyond noise and worse on no other split; the reasons go to the
version's description. `ghn rollback` goes back.

**Starts**: when an evaluation was written, or by hand. Serving follows the alias `champion`.
"""

from __future__ import annotations

from airflow.sdk import DAG, Param, get_current_context, task

from ghn_airflow import defaults
from ghn_airflow.assets import EVALUATION
from ghn_airflow.operator import GhnOperator
from ghn_airflow.settings import options, settings_of

with DAG(
    dag_id="promote",
    description="Make the candidate champion, if it is better beyond noise",
    doc_md=__doc__,
    schedule=[EVALUATION],
    catchup=False,
    tags=defaults.TAGS,
    max_active_runs=1,
    default_args=defaults.default_args(hours=1),
    params={
        "name": defaults.name(),
        "splits": defaults.splits("That must have been evaluated"),
        "dry_run": Param(False, type="boolean", title="dry run", description="Decide, but change nothing"),
        "backend": defaults.backend(),
    },
) as dag:

    @task(multiple_outputs=True, retries=0)
    def commands() -> dict[str, object]:
        """Make the command line."""
        given = settings_of(get_current_context())
        chosen = options(name=given["name"], split=given["splits"], dry_run=given["dry_run"])
        return {"promote": ["promote", *chosen]}

    GhnOperator(task_id="promote", arguments=commands()["promote"])

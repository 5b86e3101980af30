"""The assets that join the DAGs: shards → candidate → evaluation → promotion.

An event says in its ``extra`` what the next DAG has to know (addresses and names), under the names of that DAG's parameters.
"""

from __future__ import annotations

from airflow.sdk import Asset

IMAGES = Asset(name="ghn_images", uri="ghn://shards/images", group="ghn")
DEEPNETS = Asset(name="ghn_deepnets", uri="ghn://shards/deepnets", group="ghn")
CANDIDATE = Asset(name="ghn_candidate", uri="ghn://models/candidate", group="ghn")
EVALUATION = Asset(name="ghn_evaluation", uri="ghn://models/evaluation", group="ghn")

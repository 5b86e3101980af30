"""The model that MLflow logs and serves: architectures in, their parameters out.

MLflow stores this file as code ("models from code") beside copies of the packages ``ghn`` and ``pipelines`` and the
checkpoint; nothing is pickled, and nothing is fetched when it is loaded.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlflow
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE
from mlflow.pyfunc.model import PythonModel, PythonModelContext

from ghn import load_checkpoint
from ghn.checkpoint import CONFIG_NAME
from ghn.errors import InputError
from pipelines.process import tune_process
from pipelines.serving import guard
from pipelines.serving.answer import answer
from pipelines.serving.limits import Limits
from pipelines.serving.metrics import Metrics
from pipelines.serving.parameters import predict_file
from pipelines.serving.request import PredictionRequest, count_values, graph_of


class ParameterPredictor(PythonModel):
    """Predict the parameters of each given architecture."""

    def load_context(self, context: PythonModelContext) -> None:
        """Load the hypernetwork from the logged checkpoint, and predict once, so that the first request is no slower."""
        tune_process()
        checkpoint = Path(context.artifacts["checkpoint"])
        self.hypernet = load_checkpoint(checkpoint)
        self.limits, self.metrics = Limits.from_environment(), Metrics()
        self.weights = json.loads((checkpoint / CONFIG_NAME).read_text())["weights_sha256"]
        self.metrics.model.labels(self.weights).set(1)
        warm_up = PredictionRequest(model="torchvision:resnet18")
        everything = Limits(models="*")
        predict_file(self.hypernet, graph_of(warm_up, self.hypernet.config.num_classes, everything), warm_up)
        guard.install(self.limits, self.metrics)

    def predict(
        self, context: PythonModelContext, model_input: list[PredictionRequest], params: dict[str, Any] | None = None
    ) -> list[dict[str, Any]]:
        """Return an answer (see :func:`pipelines.serving.answer.answer`) for each request."""
        ticket = guard.TICKET.get(None) or guard.Ticket()
        ticket.working.set()
        try:
            return self._answers(model_input, ticket, self.limits)
        except InputError as error:
            ticket.refusal = error
            raise MlflowException(str(error), error_code=INVALID_PARAMETER_VALUE) from error
        finally:
            ticket.done.set()

    def _answers(self, requests: list[PredictionRequest], ticket: guard.Ticket, limits: Limits) -> list[dict[str, Any]]:
        graphs = []
        left = limits
        for request in requests:
            ticket.check()
            graph = graph_of(request, self.hypernet.config.num_classes, limits)
            left = left.model_copy(update={"values": left.values - count_values(graph, left)})  # of all together
            graphs.append(graph)
        answers: list[dict[str, Any]] = []
        inline = limits.inline_mib * (1 << 20)
        for request, graph in zip(requests, graphs, strict=True):
            ticket.check()
            prediction = predict_file(self.hypernet, graph, request)
            said = answer(prediction, limits, inline)
            self.metrics.predict_seconds.observe(prediction.seconds)
            self.metrics.bytes.observe(len(prediction.content))
            self.metrics.stored.inc(said["uri"] is not None)
            if said["parameters"] is not None:
                inline -= said["size"]
                said["parameters"] = ticket.leave(said["parameters"])
            answers.append({**said, "weights_sha256": self.weights})
        return answers


mlflow.models.set_model(ParameterPredictor())

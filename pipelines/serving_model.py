"""The model that MLflow logs and serves: one architecture specification in, its parameters out.

MLflow stores this file as code ("models from code") beside a copy of the ``ghn`` package and the checkpoint; nothing
is pickled. Each input row holds a specification as JSON; each output row holds its parameters as safetensors bytes,
which the scoring server sends as base64.
"""

from __future__ import annotations

import mlflow
import pandas as pd
import torch
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE
from mlflow.pyfunc.model import PythonModel, PythonModelContext
from safetensors.torch import save

from ghn import Architecture, load_checkpoint, predict
from ghn.architecture import spec_from_json
from ghn.errors import InputError


class ParameterPredictor(PythonModel):  # type: ignore[misc]
    """Predict all parameters of each specified architecture."""

    def load_context(self, context: PythonModelContext) -> None:
        """Load the hypernetwork from the logged checkpoint."""
        self.hypernet = load_checkpoint(context.artifacts["checkpoint"])

    def predict(
        self, context: PythonModelContext, model_input: pd.DataFrame, params: dict[str, object] | None = None
    ) -> pd.DataFrame:
        """Return a ``parameters`` column (safetensors bytes) for the ``specification`` column (JSON)."""
        rows = [self._predict_one(text) for text in model_input["specification"]]
        return pd.DataFrame({"parameters": rows})

    def _predict_one(self, specification: str) -> bytes:
        try:
            architecture = Architecture(spec=spec_from_json(specification))
            with torch.no_grad():
                parameters = predict(self.hypernet, architecture.graph)
        except InputError as error:
            raise MlflowException(str(error), error_code=INVALID_PARAMETER_VALUE) from error
        return save({name: tensor.contiguous().clone() for name, tensor in parameters.items()})


mlflow.models.set_model(ParameterPredictor())

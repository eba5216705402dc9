"""What a user would write instead: FastAPI, pydantic and onnxruntime. Run by ``bench/serving.py``.

The session options are the same as the daemon's: one thread, no spinning.
"""

from __future__ import annotations

import os
import sys

os.environ["ORT_DISABLE_TELEMETRY"] = "1"

import numpy as np
import onnxruntime as ort
import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel

MODEL, PORT = sys.argv[1], int(sys.argv[2])

options = ort.SessionOptions()
options.intra_op_num_threads = options.inter_op_num_threads = 1
options.add_session_config_entry("session.intra_op.allow_spinning", "0")
session = ort.InferenceSession(MODEL, options, providers=["CPUExecutionProvider"])
app = FastAPI()


class Instances(BaseModel):
    instances: list[list[float]]


@app.post("/v1/models/bench:predict")
async def predict(body: Instances) -> dict[str, list[dict[str, object]]]:
    rows = np.asarray(body.instances, dtype=np.float32)
    labels, probabilities = session.run(None, {"input": rows})
    return {
        "predictions": [
            {"label": int(label), "probabilities": row.tolist()}
            for label, row in zip(labels, probabilities, strict=True)
        ]
    }


uvicorn.run(app, host="127.0.0.1", port=PORT, log_level="error", access_log=False)

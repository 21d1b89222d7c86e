"""An OpenAI-compatible /v1/embeddings endpoint on this machine, from a tuned model.

Run it with `python examples/openai_server.py [MODEL_FOLDER] [--port 8000]`; it needs fastapi and
uvicorn. Any OpenAI client embeds with it: `OpenAI(base_url="http://127.0.0.1:8000/v1",
api_key="none")`. Documents and queries are told apart by the model's name, "nexus" or
"nexus:query", or by a field `input_type` ("document" or "query") beside it.
"""

import argparse
import asyncio
import base64
import struct
from typing import Literal

import uvicorn
from fastapi import FastAPI, HTTPException
from pydantic import BaseModel, ConfigDict, Field

from nexus_integrations.langchain import NexusEmbeddings

app = FastAPI(title="Embeddings", openapi_url=None)
embeddings = NexusEmbeddings()


class Request(BaseModel):
    """What OpenAI's clients send; what this endpoint cannot honour is refused, not ignored."""

    model_config = ConfigDict(extra="forbid")

    input: str | list[str] = Field(min_length=1)
    model: str = "nexus"
    encoding_format: Literal["float", "base64"] = "float"
    input_type: Literal["document", "query"] | None = None
    user: str | None = None


@app.get("/v1/models")
def models() -> dict[str, object]:
    """List the model under both of its names."""
    names = [{"id": name, "object": "model"} for name in ("nexus", "nexus:query")]
    return {"object": "list", "data": names}


@app.post("/v1/embeddings")
async def embed(request: Request) -> dict[str, object]:
    """Embed one text or several; a vector per text, as numbers or as base64 of float32."""
    if request.model not in ("nexus", "nexus:query"):
        raise HTTPException(404, f"no model {request.model!r}: there are nexus and nexus:query")
    texts = [request.input] if isinstance(request.input, str) else request.input
    role = request.input_type or ("query" if request.model.endswith(":query") else "document")
    if role == "query":
        rows = await asyncio.gather(*map(embeddings.aembed_query, texts))
    else:
        rows = await embeddings.aembed_documents(texts)
    data = []
    for number, row in enumerate(rows):
        vector: object = row
        if request.encoding_format == "base64":
            vector = base64.b64encode(struct.pack(f"<{len(row)}f", *row)).decode()
        data.append({"object": "embedding", "index": number, "embedding": vector})
    usage = {"prompt_tokens": 0, "total_tokens": 0}  # not counted: nobody is charged
    return {"object": "list", "data": data, "model": request.model, "usage": usage}


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("model", nargs="?", help="a folder of a saved encoder")
    parser.add_argument("--port", type=int, default=8000)
    options = parser.parse_args()
    if options.model:
        embeddings = NexusEmbeddings(model=options.model)
    print(f"fingerprint {embeddings.fingerprint}")  # loads the model before the first request
    # Loopback alone: whoever opens it to a network needs TLS and keys in front of it.
    uvicorn.run(app, host="127.0.0.1", port=options.port, log_level="warning")

"""The command line and library `llm`, with a model in its extra-openai-models.yaml."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

PICTURE, PDF = map(Path, sys.argv[1:])
with tempfile.TemporaryDirectory() as folder:
    models = f"- {{model_id: ocr, model_name: deepseek-ocr, api_base: {os.environ['OCR_BASE_URL']}, vision: true}}\n"
    (Path(folder) / "extra-openai-models.yaml").write_text(models)
    for how, options in (("as a stream", []), ("whole", ["--no-stream"])):
        command = [Path(sys.executable).with_name("llm"), "-m", "ocr", "Free OCR.", "-a", PICTURE, *options]
        environment = os.environ | {"LLM_USER_PATH": folder, "OPENAI_API_KEY": "EMPTY"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, encoding="utf-8")
        if done.returncode:
            sys.exit(done.stderr)
        print(json.dumps(["picture", how, "Free OCR.", done.stdout]))

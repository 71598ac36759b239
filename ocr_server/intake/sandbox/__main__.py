"""Enters the sandbox and prints what the kernel does not restrict, as JSON."""

import json

from ocr_server.intake.sandbox import enter

print(json.dumps(enter()))

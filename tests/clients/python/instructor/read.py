"""Instructor: a typed answer, by a JSON schema. A model without tools needs this mode."""

import json
import os
import sys
from pathlib import Path
from typing import Literal

import instructor
from openai import OpenAI
from pydantic import BaseModel


class Page(BaseModel):
    title: Literal["Office hours", "Corner Bakery", "Garden market"]


PICTURE, PDF = map(Path, sys.argv[1:])
client = instructor.from_openai(
    OpenAI(base_url=os.environ["OCR_BASE_URL"], api_key="EMPTY"), mode=instructor.Mode.JSON_SCHEMA
)
answer = client.create(
    model="deepseek-ocr",
    response_model=Page,
    messages=[{"role": "user", "content": ["Free OCR.", instructor.Image.from_path(PICTURE)]}],
)
print(json.dumps(["fields", "a typed answer", "Free OCR.", answer.title]))

"""Open WebUI: its loaders for Mistral's OCR and for an external document service.

The loaders are its own modules. The two modules of the application that they import, its environment and the headers
that forward the name of a user, need its database, and are replaced by empty ones.
"""

import importlib.metadata
import importlib.util
import json
import os
import sys
from types import ModuleType

PICTURE, PDF = sys.argv[1:]
BASE_URL = os.environ["OCR_BASE_URL"]


def module(name: str, **content: object) -> None:
    sys.modules[name] = ModuleType(name)
    vars(sys.modules[name]).update(content)


def loader(name: str) -> ModuleType:
    path = importlib.metadata.distribution("open-webui").locate_file(f"open_webui/retrieval/loaders/{name}.py")
    spec = importlib.util.spec_from_file_location(name, path)
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


for package in ("open_webui", "open_webui.utils"):
    module(package, __path__=[])
module("open_webui.env", GLOBAL_LOG_LEVEL="WARNING", ENABLE_FORWARD_USER_INFO_HEADERS=False)
module("open_webui.utils.headers", include_user_info_headers=None, parse_custom_headers=lambda *_, **__: {})

mistral = loader("mistral").MistralLoader(base_url=BASE_URL, api_key="EMPTY", file_path=PDF)
print(json.dumps(["pdf", "MistralLoader", "", "\n\n".join(page.page_content for page in mistral.load())]))
for document, path, kind in (("picture", PICTURE, "image/png"), ("pdf", PDF, "application/pdf")):
    external = loader("external_document").ExternalDocumentLoader(
        file_path=path, url=BASE_URL.removesuffix("/v1"), api_key="EMPTY", mime_type=kind
    )
    text = "\n\n".join(page.page_content for page in external.load())
    print(json.dumps([document, "ExternalDocumentLoader", "", text]))

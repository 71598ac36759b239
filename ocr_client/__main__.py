"""`python -m ocr_client`: the same as the installed command."""

from ocr_client.main import main

if __name__ == "__main__":
    main()

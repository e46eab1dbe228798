"""One module per verb, or a folder if it needs several. Start reading at `main.py`."""

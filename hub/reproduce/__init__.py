"""The paper's tables, cell by cell: `python -m hub.reproduce TABLE --data_root DATA`."""

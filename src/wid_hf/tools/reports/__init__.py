"""`wid_report.json`, `eval_report.json`, and one HTML page about many of them."""

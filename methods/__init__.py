"""Method plugins: one idea per file, each with its YAML in `conf/method/`."""

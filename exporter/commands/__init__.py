"""The commands of the command line, one module or package each; `exporter.cli` declares their flags."""

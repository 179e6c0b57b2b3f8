"""Options that several commands have."""

from pathlib import Path

import click

store_option = click.option(
    "--store", "address", envvar="EDGEWATT_STORE", default="runs", show_default=True,
    help="Folder or database URL of the runs.",
)  # fmt: skip
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout.")
devices_option = click.option(
    "--devices", "device_file", type=click.Path(path_type=Path),
    help="Device file (TOML); default: $EDGEWATT_DEVICES, else ./devices.toml.",
)  # fmt: skip

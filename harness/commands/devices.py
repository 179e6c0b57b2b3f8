"""Looking at devices."""

from __future__ import annotations

from pathlib import Path

import click

from edgewatt.harness.commands.options import devices_option, json_option
from edgewatt.harness.commands.terminal import print_json, say


@click.command()
@click.argument("names", nargs=-1, metavar="[DEVICE]...")
@devices_option
@json_option
@click.option("--seconds", default=1.0, show_default=True, help="How long each meter is watched.")
@click.option("--tcpip", metavar="SERIAL", help="Switch a phone on a cable to adb over the network, so that it can go.")
def devices(names: tuple[str, ...], device_file: Path | None, as_json: bool, seconds: float, tcpip: str | None) -> None:
    """What is connected (this host, phones on USB and the device file, or those named), its meters, what each can
    support."""
    from edgewatt.harness import survey
    from edgewatt.harness.api import UsageError
    from edgewatt.harness.devicefile import connected, entries, find

    if not 0 < seconds <= 3600:  # also not a number
        raise UsageError(f"--seconds {seconds:g}: wanted more than 0 and at most 3600")
    if tcpip is not None:
        from edgewatt.devices.android.transport import tcpip as switched

        address = switched(tcpip)
        if as_json:
            print_json({"device": f"android:{address}"})
        else:
            say(f"pull the cable and use it as android:{address}")
        return
    known = entries(device_file)
    wanted = [find(n, device_file) for n in names] or [*known.values(), *connected(known.values())]
    found = [survey.look(entry, seconds) for entry in wanted]
    if as_json:
        print_json({"devices": found})
    else:
        say(survey.in_words(found))


@click.command()
@click.argument("device", default="host")
@click.option("--restore", is_flag=True, help="Put back settings that a harness which was killed left behind.")
@devices_option
@json_option
def doctor(device: str, device_file: Path | None, as_json: bool, restore: bool) -> None:
    """What would spoil a measurement on DEVICE, and how to mend it."""
    from edgewatt.harness import survey
    from edgewatt.harness.devicefile import find

    if restore:
        with find(device, device_file).open() as unit:
            back = dict(unit.restore())
        if as_json:
            print_json({"device": device, "put_back": back})
        else:
            said = ", ".join(f"{k} = {v}" for k, v in back.items())
            say(f"{device}: put back {said}" if said else f"{device}: nothing was left to be put back")
        return
    found = survey.doctor(find(device, device_file))
    if as_json:
        print_json({"device": device, **found})
    else:
        say(survey.doctor_in_words(device, found))

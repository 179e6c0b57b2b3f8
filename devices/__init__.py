"""Devices and meters: everything that talks to hardware."""

"""Android phones over adb: power rails or a battery gauge, settings that are put back, models by a native agent."""

"""Reports: functions from runs to pages and figures."""

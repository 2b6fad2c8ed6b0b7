"""Where finished numbers can be mirrored to: one file per service, each a `specbench.track.Tracker`."""

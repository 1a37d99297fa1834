"""NDIF server: nnsight's remote protocol (0.8) on 127.0.0.1, in a process that knows nothing of the rest of emotrace.

```
python -m emotrace.testing.ndif_server --model meta-llama/Llama-3.1-8B=data/tiny_model
```

prints one line of JSON with its address and keys when it is ready. A client then says ``remote="http://127.0.0.1:PORT"``, or
sets ``NDIF_HOST``, and ``NDIF_API_KEY``. Jobs run one after the other with nnsight's own server-side calls, and ``emotrace``
cannot be imported here: whatever a block needs must have come with it. The block of an ordinary key runs in a process of its own,
which holds no weights (`sandbox` says what follows); with the ``trusted_key`` it runs beside them. Not imitated: NDIF's GPUs, a
file system of its own (a block that opens a file of the client's works here and fails there), and of the ordinary key's world
``.source`` and ``tracer.cache``, which are refused. All results are kept in memory until the server ends.

**It executes pickles that clients send**, as NDIF does. So it binds the loopback address, takes jobs with its key only, and
makes up the key where none is given; put it behind no proxy and on no other address.

What NDIF does to every job is a *mode* (`modes.MODES`): a flag, or ``POST /admin/modes``. What goes wrong is a *fault*:
``POST /admin/faults`` with ``{kind: stage, "times": 1, "after": 0}``, kinds and stages as in `faults.FAULTS`; it happens
``times`` times (−1: always) after it was spared ``after`` times. ``DELETE /admin/faults`` ends them, ``GET`` lists those that
are left. ``POST /admin/restart`` forgets every job that is not finished, and ``GET /admin/log`` lists all jobs ever seen.
Orders need the key, too.

``POST /admin/deployments`` with ``{name: [state, revision]}`` makes a model ``WARM``, ``COLD`` or ``DEPLOYING``; its first job
brings it up. Only ``/request`` asks for a key, and a model is asked for by the key that ``/status`` names, to the letter.

Its rooms: `faults`, `modes`, `models`, `sockets`, `jobs`, `deployments`, `wire`, `executing`; `runner` and `sandbox`, both ends
of a block that runs apart; `loopback`, the queue in which jobs run; `requests`, what is asked over HTTP; `serving`, the process.
They import the standard library, torch, transformers, nnsight and each other
only.
"""

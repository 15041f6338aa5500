"""The folder of a run: scored, evaluated and measured again resumably, exported and shown."""

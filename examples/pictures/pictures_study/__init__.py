"""Teachers and students on scenes of drawings, run by run."""

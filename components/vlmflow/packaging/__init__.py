"""A checkpoint as a model of MLflow: logged, registered, served. No torch until it is served."""

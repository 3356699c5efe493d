DROP TABLE resource_runtime;

DROP TABLE migration_outcomes;
DROP TABLE fleet_metrics;
DROP TABLE marketplace_features;
DROP TABLE api_keys;
DROP TABLE sessions;
DROP TABLE users;

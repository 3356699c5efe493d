DROP TABLE counters;
DROP TABLE audit_retention;
DROP TABLE audit_log;
DROP TABLE global_settings;
DROP TABLE router_secrets;
DROP TABLE routers;
DROP TABLE data_keys;

DROP TABLE hot_log;
DROP TABLE hot_meta;

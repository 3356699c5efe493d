DROP TABLE hot_truncated;
DROP TABLE hot_log;
DROP TABLE hot_tops;
DROP TABLE hot_purged;
DROP TABLE hot_behind;
DROP TABLE hot_meta;

DROP TABLE fleet_metrics_live;
DROP TABLE last_use;

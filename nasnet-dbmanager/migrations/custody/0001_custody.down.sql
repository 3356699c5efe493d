DROP TABLE backups;
DROP TABLE set_aside;
DROP TABLE retired_routers;
DROP TABLE router_intents;

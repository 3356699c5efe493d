DROP TABLE resource_secret;
DROP TABLE resource_deployment;
DROP TABLE resource;

DROP TABLE event_received;
DROP TABLE event_projections;
DROP TABLE event_cursors;
DROP TABLE event_segments;
DROP TABLE event_rows;
DROP TABLE event_names;

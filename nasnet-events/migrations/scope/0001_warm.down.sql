DROP TABLE event_chain;
DROP TABLE event_cursors;
DROP TABLE event_segments;
DROP TABLE event_rows;
DROP TABLE event_names;

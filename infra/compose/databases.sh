#!/bin/sh
# The databases of Airflow and MLflow, each with a role and a password of its own.
set -eu
psql --quiet --set=ON_ERROR_STOP=1 --username="$POSTGRES_USER" --dbname="$POSTGRES_DB" <<'SQL'
\getenv airflow AIRFLOW_DB_PASSWORD
\getenv mlflow MLFLOW_DB_PASSWORD
CREATE ROLE airflow LOGIN PASSWORD :'airflow';
CREATE ROLE mlflow LOGIN PASSWORD :'mlflow';
CREATE DATABASE airflow OWNER airflow;
CREATE DATABASE mlflow OWNER mlflow;
REVOKE CONNECT ON DATABASE airflow, mlflow FROM PUBLIC;
SQL

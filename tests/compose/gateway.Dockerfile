# A stand-in for nginx's unprivileged image, where that can not be pulled: Debian's server, and the same place for templates.
FROM python:3.11-slim-bookworm
RUN apt-get update -qq && apt-get install -y -qq --no-install-recommends nginx-light gettext-base && rm -rf /var/lib/apt/lists/*
COPY nginx.conf /etc/nginx/nginx.conf
COPY gateway-entrypoint /usr/local/bin/
RUN mkdir -p /etc/nginx/conf.d && chown -R www-data /etc/nginx/conf.d
USER www-data
ENTRYPOINT ["gateway-entrypoint"]

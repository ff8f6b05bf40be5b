{{- define "cml.name" -}}
{{ default .Chart.Name .Values.nameOverride | trunc 40 | trimSuffix "-" }}
{{- end }}

{{/* At most 40 characters: the longest suffixes make names of 52, the limit of a CronJob and a StatefulSet. */}}
{{- define "cml.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{ .Values.fullnameOverride | trunc 40 | trimSuffix "-" }}
{{- else if contains (include "cml.name" .) .Release.Name -}}
{{ .Release.Name | trunc 40 | trimSuffix "-" }}
{{- else -}}
{{ printf "%s-%s" .Release.Name (include "cml.name" .) | trunc 40 | trimSuffix "-" }}
{{- end -}}
{{- end }}

{{- define "cml.selectorLabels" -}}
app.kubernetes.io/name: {{ include "cml.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "cml.labels" -}}
{{ include "cml.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "cml.serviceAccountName" -}}
{{ .Values.serviceAccount.name | default (ternary (include "cml.fullname" .) "default" .Values.serviceAccount.create) }}
{{- end }}

{{- define "cml.image" -}}
{{- with .Values.image -}}
{{ .repository }}{{ if .digest }}@{{ .digest }}{{ else }}:{{ .tag | default $.Chart.AppVersion }}{{ end }}
{{- end -}}
{{- end }}

{{- define "cml.mongodbSecret" -}}
{{ .Values.mongodb.existingSecret | default (printf "%s-mongodb" (include "cml.fullname" .)) }}
{{- end }}

{{/* Name of the Secret with the web configuration file; empty without one. */}}
{{- define "cml.webSecret" -}}
{{- if .Values.webConfig.existingSecret -}}
{{ .Values.webConfig.existingSecret }}
{{- else if .Values.webConfig.content -}}
{{ include "cml.fullname" . }}-web
{{- end -}}
{{- end }}

{{/* The exporter's settings: the values' `config`, and what follows from the pod. */}}
{{- define "cml.config" -}}
{{- $config := deepCopy .Values.config -}}
{{- $_ := set $config "data_dir" "/var/lib/cml-worker-exporter" -}}
{{- $_ := set $config "mongodb" (merge (dict "uri_file" "/etc/cml-worker-exporter/mongodb/uri") ($config.mongodb | default dict)) -}}
{{- if include "cml.webSecret" . -}}
{{- $file := printf "/etc/cml-worker-exporter/web/%s" .Values.webConfig.existingSecretKey -}}
{{- $_ := set $config "web" (merge (dict "config_file" $file) ($config.web | default dict)) -}}
{{- end -}}
{{ toYaml $config }}
{{- end }}

{{/* Path before all routes, as the exporter derives it: empty, or /path. */}}
{{- define "cml.routePrefix" -}}
{{- $web := .Values.config.web | default dict -}}
{{- $path := $web.route_prefix | default (get (urlParse ($web.external_url | default "")) "path") -}}
{{- with trimAll "/" $path }}/{{ . }}{{ end -}}
{{- end }}

{{- define "cml.probe" -}}
httpGet:
  path: {{ include "cml.routePrefix" .root }}{{ .path }}
  port: metrics
  {{- if .root.Values.webConfig.tls }}
  scheme: HTTPS
  {{- end }}
{{ toYaml .timing }}
{{- end }}

{{/* What the containers of the exporter and of the jobs share. */}}
{{- define "cml.container" -}}
image: {{ include "cml.image" . }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
{{- with .Values.extraEnv }}
env:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.extraEnvFrom }}
envFrom:
  {{- toYaml . | nindent 2 }}
{{- end }}
securityContext:
  {{- toYaml .Values.securityContext | nindent 2 }}
{{- end }}

{{/* Mounts of the settings and the secrets. Whole folders, because a single mounted file is never renewed. */}}
{{- define "cml.mounts" -}}
- {name: config, mountPath: /etc/cml-worker-exporter/config, readOnly: true}
- {name: mongodb, mountPath: /etc/cml-worker-exporter/mongodb, readOnly: true}
{{- if include "cml.webSecret" . }}
- {name: web, mountPath: /etc/cml-worker-exporter/web, readOnly: true}
{{- end }}
- {name: tmp, mountPath: /tmp}
{{- with .Values.extraVolumeMounts }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "cml.volumes" -}}
- name: config
  configMap:
    name: {{ include "cml.fullname" . }}
- name: mongodb
  secret:
    secretName: {{ include "cml.mongodbSecret" . }}
    defaultMode: 0440
    items:
      - {key: {{ .Values.mongodb.existingSecretKey | quote }}, path: uri}
{{- if include "cml.webSecret" . }}
- name: web
  projected:
    defaultMode: 0440
    sources:
      - secret:
          name: {{ include "cml.webSecret" . }}
      {{- with .Values.webConfig.tlsSecret }}
      - secret:
          name: {{ . }}
      {{- end }}
{{- end }}
- name: tmp
  emptyDir:
    sizeLimit: 1Gi
{{- with .Values.extraVolumes }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* What the pods of the exporter and of the jobs share. */}}
{{- define "cml.pod" -}}
serviceAccountName: {{ include "cml.serviceAccountName" . }}
automountServiceAccountToken: false
enableServiceLinks: false
{{- with .Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
securityContext:
  {{- toYaml .Values.podSecurityContext | nindent 2 }}
{{- with .Values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* One endpoint of a ServiceMonitor or PodMonitor. */}}
{{- define "cml.endpoint" -}}
port: metrics
path: {{ include "cml.routePrefix" . }}/metrics
scheme: {{ ternary "https" "http" .Values.webConfig.tls }}
interval: {{ .Values.monitor.interval }}
scrapeTimeout: {{ .Values.monitor.scrapeTimeout }}
# The region of a worker must not be replaced by one of the target.
honorLabels: true
{{- with .Values.monitor.tlsConfig }}
tlsConfig:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.monitor.basicAuth }}
basicAuth:
  {{- toYaml . | nindent 2 }}
{{- end }}
relabelings:
  # The alerts know the exporters by this job, whatever the release is called.
  - {action: replace, targetLabel: job, replacement: cml-worker-exporter}
  # The pod's name survives a restart, its address does not.
  - {action: replace, sourceLabels: [__meta_kubernetes_pod_name], targetLabel: instance}
  {{- with .Values.monitor.relabelings }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- with .Values.monitor.metricRelabelings }}
metricRelabelings:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

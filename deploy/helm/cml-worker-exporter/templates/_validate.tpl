{{/* Values that the schema allows, but that cannot work together. Each mistake is one sentence. */}}
{{- define "cml.validate" -}}
{{- $mistakes := list -}}
{{- $mongodb := .Values.config.mongodb | default dict -}}
{{- $web := .Values.config.web | default dict -}}
{{- if and (gt (int .Values.shards) 1) (hasKey (.Values.config.workers | default dict) "shard") -}}
{{- $mistakes = append $mistakes "config.workers.shard is set by the chart to a number of each StatefulSet; remove it, or set shards to 1" -}}
{{- end -}}
{{- if or $mongodb.uri $mongodb.uri_file -}}
{{- $mistakes = append $mistakes "config.mongodb.uri and config.mongodb.uri_file would stand in a ConfigMap or name a file that the pod does not have; set mongodb.existingSecret or mongodb.uri" -}}
{{- end -}}
{{- range (.Values.config.history).forward -}}
{{- if regexMatch "://[^/]*:[^/]*@" (.url | default "") -}}
{{- $mistakes = append $mistakes "config.history.forward has a url with a password, which would stand in a ConfigMap; mount a Secret by extraVolumes and extraVolumeMounts, and set url_file" -}}
{{- end -}}
{{- end -}}
{{- if and .Values.mongodb.uri .Values.mongodb.existingSecret -}}
{{- $mistakes = append $mistakes "mongodb.uri and mongodb.existingSecret are both set; set only one" -}}
{{- end -}}
{{- if and .Values.mongodb.uri (ne .Values.mongodb.existingSecretKey "uri") -}}
{{- $mistakes = append $mistakes "mongodb.existingSecretKey is for mongodb.existingSecret; remove it, or mongodb.uri" -}}
{{- end -}}
{{- if hasKey .Values.config "data_dir" -}}
{{- $mistakes = append $mistakes "config.data_dir is set by the chart to the volume of the outbox; remove it" -}}
{{- end -}}
{{- if $web.listen_address -}}
{{- $mistakes = append $mistakes "config.web.listen_address is fixed at port 9877, which the probes use; remove it, and set service.port" -}}
{{- end -}}
{{- if $web.config_file -}}
{{- $mistakes = append $mistakes "config.web.config_file is set by the chart; set webConfig.existingSecret or webConfig.content" -}}
{{- end -}}
{{- if $web.probes_need_auth -}}
{{- $mistakes = append $mistakes "config.web.probes_need_auth would fail every probe, because kubelet has no password; remove it, and limit who reaches the pods by networkPolicy" -}}
{{- end -}}
{{- if and .Values.webConfig.content .Values.webConfig.existingSecret -}}
{{- $mistakes = append $mistakes "webConfig.content and webConfig.existingSecret are both set; set only one" -}}
{{- end -}}
{{- if and .Values.webConfig.content (ne .Values.webConfig.existingSecretKey "web.yml") -}}
{{- $mistakes = append $mistakes "webConfig.existingSecretKey is for webConfig.existingSecret; remove it, or webConfig.content" -}}
{{- end -}}
{{- $tls := (.Values.webConfig.content).tls_server_config -}}
{{- if and .Values.webConfig.content (ne (not $tls) (not .Values.webConfig.tls)) -}}
{{- $mistakes = append $mistakes "webConfig.tls must be true if webConfig.content has tls_server_config, else false; the probes use it" -}}
{{- end -}}
{{- if and .Values.webConfig.tls (not (include "cml.webSecret" .)) -}}
{{- $mistakes = append $mistakes "webConfig.tls needs a web configuration file; set webConfig.existingSecret or webConfig.content" -}}
{{- end -}}
{{- if has (($tls).client_auth_type | default "") (list "RequireAndVerifyClientCert" "RequireAnyClientCert") -}}
{{- $mistakes = append $mistakes "webConfig.content.tls_server_config.client_auth_type would fail every probe, because kubelet has no client certificate; use VerifyClientCertIfGiven with basic_auth_users" -}}
{{- end -}}
{{- with $mistakes -}}
{{- fail (printf "\n- %s" (join "\n- " .)) -}}
{{- end -}}
{{- end }}

{{- define "kvgate.name" -}}
{{- $name := .Release.Name -}}
{{- if not (contains "kvgate" $name) -}}{{- $name = printf "%s-kvgate" $name -}}{{- end -}}
{{- $name | trunc 40 | trimSuffix "-" -}}
{{- end }}

{{- define "kvgate.labels" -}}
app.kubernetes.io/name: kvgate
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end }}

{{- /* What selects the pods of one part: dict "top" . "part" "prefill"|"decode"|"router" */ -}}
{{- define "kvgate.selector" -}}
app.kubernetes.io/name: kvgate
app.kubernetes.io/instance: {{ .top.Release.Name }}
app.kubernetes.io/component: {{ .part }}
{{- end }}

{{- define "kvgate.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end }}

{{- define "kvgate.tokenSecret" -}}
{{ .Values.auth.existingSecret | default (printf "%s-token" (include "kvgate.name" .)) }}
{{- end }}

{{- define "kvgate.servedName" -}}
{{ .Values.model.servedName | default .Values.model.id }}
{{- end }}

{{- /* A sidecar's own shutdown: drain 15 s, quiesce 12 s, close 2 s (sidecar/src/lifecycle.rs), and a second to be told. */ -}}
{{- define "kvgate.sidecarShutdownSeconds" -}}30{{- end }}

{{- /* vLLM's own end after SIGTERM: its processes, NIXL's deregistration of the cache. */ -}}
{{- define "kvgate.engineShutdownSeconds" -}}30{{- end }}

{{- /* A router in a decode pod is told after the engine has ended: it waits for nobody any more, and has notices to hand out. */ -}}
{{- define "kvgate.podLocalDrainSeconds" -}}5{{- end }}

{{- /* That, and its last words (router/src/router.rs). */ -}}
{{- define "kvgate.podLocalShutdownSeconds" -}}15{{- end }}

{{- /* Between the decision that a pod goes and the signal: routers and endpoints are told meanwhile. */ -}}
{{- define "kvgate.noticeSeconds" -}}5{{- end }}

{{- define "kvgate.routerName" -}}
{{ .Values.router.name | default (printf "%s-router" (include "kvgate.name" .)) }}
{{- end }}

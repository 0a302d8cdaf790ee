{{- /* Where the certificates of the pods among one another lie, in sidecars and routers. */ -}}
{{- define "kvgate.tlsFolder" -}}/etc/kvgate-tls{{- end }}

{{- /* The name of whom the pods ask among one another: http, or https with tls.internal. */ -}}
{{- define "kvgate.sidecarScheme" -}}
{{- ternary "https" "http" (not (empty .Values.tls.internal.secretName)) -}}
{{- end }}

{{- /* What a sidecar serves with and asks with. */ -}}
{{- define "kvgate.sidecarTls" -}}
{{- if .Values.tls.internal.secretName -}}
{{- $folder := include "kvgate.tlsFolder" . -}}
- {name: KVGATE_TLS_CERT, value: {{ $folder }}/tls.crt}
- {name: KVGATE_TLS_KEY, value: {{ $folder }}/tls.key}
- {name: KVGATE_TLS_CLIENT_CA, value: {{ $folder }}/ca.crt}
- {name: KVGATE_UPSTREAM_CA, value: {{ $folder }}/ca.crt}
- {name: KVGATE_UPSTREAM_CERT, value: {{ $folder }}/tls.crt}
- {name: KVGATE_UPSTREAM_KEY, value: {{ $folder }}/tls.key}
- {name: KVGATE_UPSTREAM_SERVER_NAME, value: {{ .Values.tls.internal.serverName }}}
{{- end }}
{{- end }}

{{- /* Whom D's sidecar may be made to connect to: P's side channels, and P's sidecars where it verifies. */ -}}
{{- define "kvgate.peerAllow" -}}
{{- $v := .Values -}}
{{- $first := int $v.engine.sideChannelPort -}}
{{- $allowed := list -}}
{{- range $v.sidecar.peerNetworks -}}
{{- $network := ternary (printf "[%s]" .) . (contains ":" .) -}}
{{- $allowed = append $allowed (printf "%s:%d-%d" $network $first (sub (add $first (int $v.parallelism.data)) 1)) -}}
{{- $allowed = append $allowed (printf "%s:%d" $network (int $v.sidecar.port)) -}}
{{- end -}}
{{- join "," $allowed -}}
{{- end }}

{{- /* A sidecar's probe: dict "top" . "path" "/livez". The kubelet has no certificate to show, so with mutual TLS the container asks itself. */ -}}
{{- define "kvgate.sidecarProbe" -}}
{{- if .top.Values.tls.internal.secretName -}}
exec: {command: [/usr/local/bin/kvgate, health, "--url=https://127.0.0.1:{{ .top.Values.sidecar.port }}{{ .path }}"]}
{{- else -}}
httpGet: {path: {{ .path }}, port: kvgate}
{{- end }}
{{- end }}

{{- /* What a router asks the sidecars with. */ -}}
{{- define "kvgate.routerTls" -}}
{{- if .Values.tls.internal.secretName -}}
{{- $folder := include "kvgate.tlsFolder" . -}}
- --sidecar-scheme=https
- --upstream-ca={{ $folder }}/ca.crt
- --upstream-cert={{ $folder }}/tls.crt
- --upstream-key={{ $folder }}/tls.key
- --upstream-server-name={{ .Values.tls.internal.serverName }}
{{- end }}
{{- end }}

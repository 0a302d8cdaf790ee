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

{{- /* What a router shows its clients, and asks of them. */ -}}
{{- define "kvgate.clientsTls" -}}
{{- $clients := .Values.tls.clients -}}
{{- if and $clients.clientCa.secretName (not $clients.secretName) }}
{{- fail "tls.clients.clientCa: without tls.clients.secretName the router speaks no TLS in which to ask for certificates" }}
{{- end }}
{{- if and $clients.clientCa.secretName (not (and $clients.probe.secretName $clients.probe.serverName)) }}
{{- fail "tls.clients.probe: the kubelet and Prometheus need a certificate too: give secretName and serverName" }}
{{- end }}
{{- if $clients.secretName -}}
- --tls-cert=/etc/kvgate-clients-tls/tls.crt
- --tls-key=/etc/kvgate-clients-tls/tls.key
{{- end }}
{{- if $clients.clientCa.secretName }}
- --tls-client-ca=/etc/kvgate-clients-ca/ca.crt
{{- end }}
{{- end }}

{{- /* A router's probe: dict "top" . "path" "/livez". The kubelet checks no certificate and has none to show: the container asks itself where one must. */ -}}
{{- define "kvgate.routerProbe" -}}
{{- $clients := .top.Values.tls.clients -}}
{{- if $clients.clientCa.secretName -}}
exec:
  command:
    - /usr/local/bin/kvgate
    - health
    - --url=https://127.0.0.1:{{ .top.Values.router.port }}{{ .path }}
    - --upstream-ca=/etc/kvgate-probe-tls/ca.crt
    - --upstream-cert=/etc/kvgate-probe-tls/tls.crt
    - --upstream-key=/etc/kvgate-probe-tls/tls.key
    - --upstream-server-name={{ $clients.probe.serverName }}
{{- else -}}
httpGet: {path: {{ .path }}, port: http{{ if $clients.secretName }}, scheme: HTTPS{{ end }}}
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

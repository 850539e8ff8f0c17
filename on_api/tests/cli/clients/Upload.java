// Java's own client as it is by default: it offers to upgrade to HTTP/2.  java Upload.java BASE KEY SIZE...
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse.BodyHandlers;
import java.time.Duration;

public class Upload {
    public static void main(String[] given) throws Exception {
        HttpClient client = HttpClient.newHttpClient();
        for (int at = 2; at < given.length; at++) {
            byte[] body = new byte[Integer.parseInt(given[at])];
            send(client, given, "PUT", "/v1/files?name=java", "application/x-test", HttpRequest.BodyPublishers.ofByteArray(body));
        }
        String key = "{\"name\": \"java\", \"scopes\": [\"files:read\"]}";
        send(client, given, "POST", "/v1/keys", "application/json", HttpRequest.BodyPublishers.ofString(key));
        send(client, given, "GET", "/v1/files", "application/json", HttpRequest.BodyPublishers.noBody());
        System.exit(0);
    }

    static void send(HttpClient client, String[] given, String method, String path, String type, HttpRequest.BodyPublisher body)
            throws Exception {
        HttpRequest request = HttpRequest.newBuilder(URI.create(given[0] + path)).timeout(Duration.ofSeconds(60))
            .header("Authorization", "Bearer " + given[1]).header("Content-Type", type).method(method, body).build();
        var answer = client.send(request, BodyHandlers.ofString());
        System.out.println(answer.statusCode() + " " + answer.body());
    }
}
